from django.urls import path

from .views import create_charge

urlpatterns = [path("v1/charges", create_charge)]
